import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourceType;

/** Gives the rights that standard input lists, in one go: see `scripts/kafka --help`. */
class KafkaRights {
    public static void main(String[] brokers) throws Exception {
        List<AclBinding> rights = new ArrayList<>();
        for (String line : new BufferedReader(new InputStreamReader(System.in)).lines().filter(l -> !l.isBlank()).toList()) {
            String[] words = line.trim().split("\\s+");
            var resource = new ResourcePattern(ResourceType.fromString(words[1]), words[3], PatternType.fromString(words[2].toUpperCase()));
            for (String operation : words[4].split(",")) {
                var entry = new AccessControlEntry("User:" + words[0], "*", AclOperation.fromString(operation), AclPermissionType.ALLOW);
                rights.add(new AclBinding(resource, entry));
            }
        }
        try (Admin admin = Admin.create(Map.of("bootstrap.servers", brokers[0]))) {
            admin.createAcls(rights).all().get();
        }
        System.out.println(rights.size() + " rights given");
    }
}
